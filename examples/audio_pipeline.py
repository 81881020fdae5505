"""A graph that listens to audio: features, tempo, tags, embeddings, similarity, a catalogue.

It shows how a graph is declared by keys alone: ``tag`` starts when features and tempos are there,
``compare`` when there are embeddings, and nobody writes an order down. Results are printed in the
moment in which they arrive. The clips are made on the spot, in a temporary directory.

Run it with ``python examples/audio_pipeline.py``.
"""

from __future__ import annotations

import asyncio
import cmath
import math
import random
import statistics
import tempfile
import time
import wave
from array import array
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

from taskiq import InMemoryBroker

from taskiq_flow import DataflowRegistry, ExecutionEngine

RATE = 8000  # samples per second
SECONDS = 2.5
FRAME = 128  # samples per spectrum
HOP = 40  # samples between two values of the energy envelope
SMOOTHING = 10  # hops that one value of the envelope spans: longer than the beating of a chord
SLOWEST, FASTEST = 60, 200  # bpm
LEAST_PULSE = 0.5  # spread of the envelope against its mean; below this, nothing beats
LEAST_REPETITION = 0.3  # correlation of the envelope with itself, one beat later

TONAL_FLATNESS = 0.1
NOISY_FLATNESS = 0.4
BRIGHT_HZ = 1200.0
MOVING_HZ = 300.0
NEIGHBOURS = 2  # similar clips named in the catalogue

Table = dict[str, dict[str, float]]

broker = InMemoryBroker()


@broker.task
def extract_features(audio_files: list[str]) -> Table:
    """Loudness and spectrum of each file."""
    return {Path(path).stem: features_of(read_wav(path)) for path in audio_files}


@broker.task
def estimate_tempo(audio_files: list[str]) -> Table:
    """Beats per minute of each file, 0 for one that does not beat."""
    return {Path(path).stem: {"bpm": tempo_of(read_wav(path))} for path in audio_files}


@broker.task
def tag(features: Table, tempos: Table) -> dict[str, list[str]]:
    """What one would say of each file."""
    return {name: tags_of(features[name], tempos[name]["bpm"]) for name in features}


@broker.task
def embed(features: Table, tempos: Table) -> dict[str, list[float]]:
    """Each file as a vector; each component in standard deviations from the mean of all files."""
    rows = [[*features[name].values(), tempos[name]["bpm"]] for name in features]
    columns = [standardised(column) for column in zip(*rows, strict=True)]
    return dict(zip(features, map(list, zip(*columns, strict=True)), strict=True))


@broker.task
def compare(embeddings: dict[str, list[float]]) -> Table:
    """The cosine of the angle between any two files."""
    return {
        name: {other: cosine(vector, embeddings[other]) for other in embeddings if other != name}
        for name, vector in embeddings.items()
    }


@broker.task
def catalogue(
    tempos: Table, tags: dict[str, list[str]], similarity: Table
) -> dict[str, dict[str, Any]]:
    """All that is worth knowing of each file."""
    return {
        name: {
            "bpm": round(tempos[name]["bpm"]) or "-",
            "tags": tags[name],
            "like": sorted(others, key=others.__getitem__, reverse=True)[:NEIGHBOURS],
        }
        for name, others in similarity.items()
    }


def make_engine() -> ExecutionEngine:
    """The graph, ready to run on any list of ``audio_files``."""
    registry = DataflowRegistry()
    registry.register_task(extract_features, output="features", inputs=["audio_files"])
    registry.register_task(estimate_tempo, output="tempos", inputs=["audio_files"])
    registry.register_task(tag, output="tags", inputs=["features", "tempos"])
    registry.register_task(embed, output="embeddings", inputs=["features", "tempos"])
    registry.register_task(compare, output="similarity", inputs=["embeddings"])
    registry.register_task(catalogue, output="catalogue", inputs=["tempos", "tags", "similarity"])
    return ExecutionEngine(broker, registry.build_dag())


def features_of(samples: list[float]) -> dict[str, float]:
    """RMS, zero crossings per second, spectral centroid, how it moves, spectral flatness."""
    frames = [samples[start : start + FRAME] for start in range(0, len(samples) - FRAME, FRAME)]
    loud = [frame for frame in frames if rms(frame) > rms(samples) / 2]
    spectra = [power_spectrum(frame) for frame in loud]
    centroids = [centroid(spectrum) for spectrum in spectra]
    crossings = sum((a < 0) != (b < 0) for a, b in pairwise(samples))
    return {
        "rms": rms(samples),
        "crossings": crossings * RATE / len(samples),
        "centroid": statistics.fmean(centroids),
        "movement": statistics.pstdev(centroids),
        "flatness": statistics.fmean(map(flatness, spectra)),
    }


def tempo_of(samples: list[float]) -> float:
    """The lag at which the energy envelope resembles itself most, as beats per minute."""
    envelope = energy_envelope(samples)
    mean = statistics.fmean(envelope)
    if statistics.pstdev(envelope) < LEAST_PULSE * mean:
        return 0.0
    centred = [value - mean for value in envelope]
    hops_per_minute = 60 * RATE / HOP
    lags = range(int(hops_per_minute / FASTEST), int(hops_per_minute / SLOWEST) + 1)
    beat = max(lags, key=lambda lag: repetition(centred, lag))
    if repetition(centred, beat) < LEAST_REPETITION * repetition(centred, 0):
        return 0.0
    return hops_per_minute / beat


def tags_of(features: dict[str, float], bpm: float) -> list[str]:
    """Rules on the features; a clip may have several tags."""
    rules = {
        "tonal": features["flatness"] < TONAL_FLATNESS,
        "noisy": features["flatness"] > NOISY_FLATNESS,
        "rhythmic": bpm > 0,
        "moving": features["movement"] > MOVING_HZ,
        "bright" if features["centroid"] > BRIGHT_HZ else "dark": True,
    }
    return [name for name, holds in rules.items() if holds]


def energy_envelope(samples: list[float]) -> list[float]:
    """Energy over time, one value every ``HOP`` samples, over ``SMOOTHING`` hops each."""
    total = [0.0, *accumulate(sample * sample for sample in samples)]
    span = HOP * SMOOTHING
    return [total[start + span] - total[start] for start in range(0, len(samples) - span, HOP)]


def repetition(values: list[float], lag: int) -> float:
    """The autocorrelation at one lag. Longer lags overlap less, so that one beat beats two."""
    return sum(a * b for a, b in zip(values, values[lag:], strict=False))


TURNS = [cmath.rect(1.0, -math.tau * step / FRAME) for step in range(FRAME)]
WINDOW = [math.sin(math.pi * step / FRAME) ** 2 for step in range(FRAME)]


def power_spectrum(frame: list[float]) -> list[float]:
    """A discrete Fourier transform by its definition: slow, short, and fast enough for clips."""
    windowed = [sample * weight for sample, weight in zip(frame, WINDOW, strict=True)]
    return [
        abs(sum(value * TURNS[k * n % FRAME] for n, value in enumerate(windowed))) ** 2
        for k in range(1, FRAME // 2)
    ]


def centroid(spectrum: list[float]) -> float:
    """The mean frequency in Hz, weighted with the power at each."""
    weighted = sum(k * power for k, power in enumerate(spectrum, start=1))
    return weighted / sum(spectrum) * RATE / FRAME


def flatness(spectrum: list[float]) -> float:
    """Near 0 for a pure tone, nearer to 1 the more evenly power is spread."""
    return statistics.geometric_mean(spectrum) / statistics.fmean(spectrum)


def rms(samples: list[float]) -> float:
    """The root of the mean square: how loud it is."""
    return math.sqrt(statistics.fmean(sample * sample for sample in samples))


def standardised(column: tuple[float, ...]) -> list[float]:
    """Each value in standard deviations from the column's mean."""
    mean, deviation = statistics.fmean(column), statistics.pstdev(column)
    return [(value - mean) / deviation if deviation else 0.0 for value in column]


def cosine(left: list[float], right: list[float]) -> float:
    """1 for the same direction, -1 for opposite ones."""
    product = sum(a * b for a, b in zip(left, right, strict=True))
    return product / (math.hypot(*left) * math.hypot(*right))


def tone(*frequencies: float) -> list[float]:
    """Sines of equal loudness."""
    return [
        sum(math.sin(math.tau * frequency * n / RATE) for frequency in frequencies)
        / (2 * len(frequencies))
        for n in range(int(SECONDS * RATE))
    ]


def sweep(lowest: float, highest: float) -> list[float]:
    """A sine that rises evenly."""
    rise = (highest - lowest) / SECONDS
    times = (n / RATE for n in range(int(SECONDS * RATE)))
    return [0.5 * math.sin(math.tau * (lowest + rise * t / 2) * t) for t in times]


def noise(loudness: float) -> list[float]:
    """White noise."""
    return [random.gauss(0.0, loudness) for _ in range(int(SECONDS * RATE))]


def clicks(bpm: float) -> list[float]:
    """A short decaying click at each beat, in very quiet noise."""
    samples = noise(0.002)
    for beat in range(math.ceil(SECONDS * bpm / 60)):
        start = int(beat * 60 / bpm * RATE)
        for n in range(min(RATE // 20, len(samples) - start)):
            samples[start + n] += 0.8 * math.exp(-n / 80) * math.sin(math.tau * 1000 * n / RATE)
    return samples


def write_wav(path: str, samples: list[float]) -> None:
    """Write mono audio of 16 bits; samples lie between -1 and 1."""
    with wave.open(path, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE)
        clipped = (max(-1.0, min(1.0, sample)) for sample in samples)
        file.writeframes(array("h", (round(32767 * sample) for sample in clipped)).tobytes())


def read_wav(path: str) -> list[float]:
    """Read what ``write_wav`` writes."""
    with wave.open(path, "rb") as file:
        return [sample / 32767 for sample in array("h", file.readframes(file.getnframes()))]


def write_clips(folder: Path) -> list[str]:
    """Write a few clips and return their paths."""
    random.seed(1)  # the same noise, and so the same figures, in every run
    clips = {
        "tone_a4": tone(440.0),
        "chord_c_major": tone(261.6, 329.6, 392.0),
        "sweep_up": sweep(200.0, 3000.0),
        "white_noise": noise(0.2),
        "clicks_90": clicks(90),
        "clicks_120": clicks(120),
        "clicks_150": clicks(150),
    }
    paths = [str(folder / f"{name}.wav") for name in clips]
    for path, samples in zip(paths, clips.values(), strict=True):
        write_wav(path, samples)
    return paths


def shown(value: Any) -> str:
    """A value on one line."""
    match value:
        case float():
            return f"{value:.2f}"
        case list():
            return ", ".join(map(shown, value))
        case dict():
            return "  ".join(f"{key} {shown(inner)}" for key, inner in value.items())
        case _:
            return str(value)


async def main() -> None:
    """Write the clips, run the graph on them, print each result as it comes."""
    await broker.startup()
    with tempfile.TemporaryDirectory() as folder:
        audio_files = write_clips(Path(folder))
        started = time.perf_counter()
        async for name, result in make_engine().execute_async({"audio_files": audio_files}):
            print(f"\n{name}, after {time.perf_counter() - started:.2f} s")
            for clip, value in result.items():
                print(f"    {clip:<16}{shown(value)}")
    await broker.shutdown()


if __name__ == "__main__":
    asyncio.run(main())

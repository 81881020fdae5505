"""The documentation as a site: ``python -m website`` builds it, ``--serve`` shows it.

``docs/`` is written to be read as files, and its links lead to files of the repository. A site has
pages only: ``pages.py`` makes one of each such file, and ``reference.py`` those of the public
names. Zensical renders them, by ``zensical.toml``; ``check.py`` reads what it has built.
"""

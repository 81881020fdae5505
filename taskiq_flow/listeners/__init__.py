"""Listeners that show to people what the view of a run has. They interpret no events."""

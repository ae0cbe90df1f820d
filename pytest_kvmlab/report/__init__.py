"""The journal of a run, told: text, JUnit, artifacts."""

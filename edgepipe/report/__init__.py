"""Reports of a build: terminal, HTML, JUnit, model card. All read the manifest; none computes a figure."""

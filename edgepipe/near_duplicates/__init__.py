"""Texts that are nearly the same, and passages that several texts share: found by MinHash and winnowing, judged exactly."""

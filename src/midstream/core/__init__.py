"""Shared types of Midstream. Imports nothing else of Midstream and never torch."""

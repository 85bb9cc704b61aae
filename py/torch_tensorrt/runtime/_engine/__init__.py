"""Engines, their files and their settings."""

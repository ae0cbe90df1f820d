"""Lifetimes and sequence: images, hosts, guests, waits."""

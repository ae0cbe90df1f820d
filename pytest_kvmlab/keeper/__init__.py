"""The process that outlives a test and dies with its owner. Standard library only."""

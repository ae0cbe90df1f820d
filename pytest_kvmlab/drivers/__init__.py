"""One door per outside thing: only that module imports the library or runs the program."""

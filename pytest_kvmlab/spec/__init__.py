"""What is asked for: options, marks, lab files and recipes become frozen models. Pure."""

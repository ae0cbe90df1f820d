"""Two sets of runs, compared: what fails now, what kernels say now, what is lost, what is slower. Pure."""

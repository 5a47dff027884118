"""How fast carp_nb is beside other software that does the same work; `make bench` runs it."""

"""One thin script per DVC stage: load the parameters, read the ins, call the library, write the outs."""

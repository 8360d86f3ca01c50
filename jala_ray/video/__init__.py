"""Video files: look at one (`decode.probe`), fetch the frames shown at given times, write one."""

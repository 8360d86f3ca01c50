"""LeRobot data sets (v2.0, v2.1, v3.0; with GR00T's modality.json) read in place, as samples of one frame of one episode each."""

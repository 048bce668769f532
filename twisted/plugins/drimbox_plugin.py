"""`twistd drimbox --config FILE`."""

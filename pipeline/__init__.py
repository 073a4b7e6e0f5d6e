"""Order, retries, schedules and the command line. Holds no pixel and no tensor."""

"""Images in, numbers out: the library of visionloop, which knows no orchestrator, no server and no report tool."""

__version__ = "0.1.0"

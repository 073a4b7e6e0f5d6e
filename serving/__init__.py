"""The Triton model repository, the embedded server, the client, the router and the prediction store."""

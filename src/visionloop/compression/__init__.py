"""From a trained network to the file that is served: ONNX, INT8, and the proof that both still answer like the network."""

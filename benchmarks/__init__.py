"""Speed and memory beside other libraries (`python -m benchmarks`), and accuracy, each by a script of its own."""

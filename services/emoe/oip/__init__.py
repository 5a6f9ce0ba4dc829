"""Generated from protos/inference: the Open Inference Protocol. Its messages live in the package `inference`, whose
names a process can hold once: what imports tritonclient or kserve must not import this."""

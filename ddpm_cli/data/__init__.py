"""Images to train on: sources (digits, MNIST, CIFAR-10, a folder) as uint8 arrays, and the order of their batches."""

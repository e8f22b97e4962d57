"""What training on many GPUs should cost, by arithmetic from stated assumptions: the tables of docs/scaling.md."""

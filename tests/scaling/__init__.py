"""What many GPUs should cost, by arithmetic from stated assumptions: the tables of docs/explanation/scaling.md."""

"""Networks. They map (x_t, t) to a tensor of x_t's shape and know nothing of noise schedules."""

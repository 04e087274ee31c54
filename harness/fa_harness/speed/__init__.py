"""Time: measured as ratios, judged against limits and baselines."""

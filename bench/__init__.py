"""Speed, as ratios to a bare part measured in the same run.

The machines that this runs on are shared and their clocks drift within seconds, so rounds of ours and of the baseline
alternate, the ratio is taken round by round, and the median of the ratios is the figure. `python -m bench` prints a
table and writes `bench/out/summary.json`.
"""

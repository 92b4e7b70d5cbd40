"""A whole helper, its clients and its storage servers under a seeded plan of faults: see run.py.

Time stands still until the simulation moves it, threads are turns of the scheduler, and every choice comes from one
seed; so a seed that fails fails again, alone: `python -m simulation --seed N`, in tests/.
"""

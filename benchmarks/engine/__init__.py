"""The parts of `benchmarks/svds.py`: cases, peers, how answers are verified, how time is taken, sections and tables."""

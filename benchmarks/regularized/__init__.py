"""Three trainings with spectral penalties, each beside its rivals: deep plain networks, robustness, low rank."""

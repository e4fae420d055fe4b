"""Whether a continuation is exact: what surrounds a state, compared at a resume."""

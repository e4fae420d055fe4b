"""Pictures and pages of runs: report, terminal, notebook, figures."""

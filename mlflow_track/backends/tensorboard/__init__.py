"""TensorBoard as a destination: event files in the run's own folder."""

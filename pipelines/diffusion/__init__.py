"""The mathematics of diffusion over pixels and over points: schedules, posteriors, samplers, bounds."""

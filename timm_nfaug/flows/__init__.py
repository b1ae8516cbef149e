"""The flows: bijections, networks, class Gaussians, and the registry that names them."""

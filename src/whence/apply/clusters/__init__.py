"""Groups of training examples that act alike."""

from whence.apply.clusters.clusters import Cluster, Clusters, clusters
from whence.apply.clusters.directions import directions, principal
from whence.apply.clusters.page import show_clusters, write_clusters

__all__ = ["Cluster", "Clusters", "clusters", "directions", "principal", "show_clusters", "write_clusters"]

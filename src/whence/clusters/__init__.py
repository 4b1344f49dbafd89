"""Groups of training examples that act alike."""

from whence.clusters.clusters import Cluster, Clusters, clusters
from whence.clusters.directions import directions, principal
from whence.clusters.page import show_clusters, write_clusters

__all__ = ["Cluster", "Clusters", "clusters", "directions", "principal", "show_clusters", "write_clusters"]

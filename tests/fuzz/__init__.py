"""Random models, data and questions: whence equals plain autograd one example at a time, or refuses with the true cause."""

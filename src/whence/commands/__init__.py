"""What each verb does: load, call the pipeline, print. stdout is data, stderr is progress."""

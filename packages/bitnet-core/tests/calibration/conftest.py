from training_fixtures import traces

__all__ = ["traces"]

"""Help texts that the options of several hosted teachers share. Keys are named there, never written."""

MODEL = "the model's name as the provider writes it (default: what the variable model_env holds)"


MODEL_ENV = "the environment variable that names the model where `model` is not set"


KEY_ENV = "the environment variable that holds the API key"


BASE_URL = "another address of the API, e.g. a gateway's (default: what the variable base_url_env holds, else its own)"


BASE_URL_ENV = "the environment variable that holds the address where `base_url` is not set"


TIMEOUT = "seconds that one answer may take"

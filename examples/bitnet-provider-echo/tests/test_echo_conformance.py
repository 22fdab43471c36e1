"""echo keeps the contract: the kit's tests, inherited."""

from bitnet_providers.testing import TeacherConformance


class TestEcho(TeacherConformance):
    plugin_module = "bitnet_provider_echo.plugin"
    plugin_name = "echo"

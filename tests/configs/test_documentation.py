"""docs/configuration.md is what the settings classes say."""

import runpy


def test_the_page_is_what_its_generator_writes(request):
    made = runpy.run_path(str(request.config.rootpath / "docs" / "make_configuration.py"))
    assert made["PAGE"].read_text() == made["page"](), "run python docs/make_configuration.py"

"""``bigbench_general_knowledge`` and ``bigbench_phrase_relatedness``: multiple choice."""

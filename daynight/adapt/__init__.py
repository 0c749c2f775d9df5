"""The whole method, stage by stage: on own folders (`adapt`), and the stages that `demo` shares."""

"""The services of the agent, one file each."""

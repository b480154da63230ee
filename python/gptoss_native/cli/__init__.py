"""The gptoss-native command."""

"""What several test files share: no tests."""

"""What a value is on its way from task to task. Only this folder copies or converts one."""

"""What a run will take: tokens, images, device-hours, time, disk and money, before anything is spent."""

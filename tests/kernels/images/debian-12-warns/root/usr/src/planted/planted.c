#include <linux/module.h>

static int __init planted_init(void)
{
	WARN(1, "planted\n");
	return 0;
}

module_init(planted_init);
MODULE_LICENSE("GPL");
